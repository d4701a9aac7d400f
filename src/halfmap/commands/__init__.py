"""One file per job: options, inputs, run, outputs; what several share stands in files whose names
begin with _."""
