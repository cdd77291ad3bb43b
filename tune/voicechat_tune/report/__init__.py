"""The written report of a sweep or a comparison: statistics, figures, a conclusion, HTML and Markdown."""
