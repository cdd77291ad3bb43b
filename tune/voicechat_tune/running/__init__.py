"""How a sweep runs: the driver, the trials and their workers, storage, and what is kept."""
