"""What a build did and would do: the summary of a matrix, reasons for jobs, the progress display."""
