"""What differs between methods: how poses are weighed, the references updated, and when a run is
finished."""
