"""The page's tabs of models and sweeps, and what they are drawn with: parts of HTML, curves, maps of heads."""
