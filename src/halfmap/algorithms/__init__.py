"""The methods, each a page like its lecture slide, and the jobs that run them."""
