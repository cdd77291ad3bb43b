"""The page's tabs on models and sweeps, and their parts: HTML, line charts, maps of heads."""
