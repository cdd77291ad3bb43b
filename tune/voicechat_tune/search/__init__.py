"""What a sweep decides: its file and its study, samplers, schedulers, and the ranking of trials."""
