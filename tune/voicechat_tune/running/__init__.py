"""The execution of a sweep: the driver, the trials and their workers, storage, and retention."""
