"""Language models: prompts, engines, versions, and the deployment of one model."""
