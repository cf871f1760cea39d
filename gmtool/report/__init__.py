"""IoU reports: metrics, intervals, comparisons, and their JSON, HTML, Markdown and CSV files."""
