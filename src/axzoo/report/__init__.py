"""Reports on builds: the summary of a matrix, the reasons for planned jobs, and the progress display."""
