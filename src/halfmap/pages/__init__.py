"""What a browser is shown: a server of job folders that beside them knows the commands' options."""
