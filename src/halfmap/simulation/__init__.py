"""Particles whose truth is known: forward model, phantom, atomic models."""
