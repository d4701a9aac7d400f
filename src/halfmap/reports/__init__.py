"""What a job's page and its report show, from the job's folder alone; and the page's own files."""
