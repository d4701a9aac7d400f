"""Where an image may lie: sampling of orientations and shifts, global searches, continuous
refinement, Laplace weights."""
