"""Language models: prompts, engines, versions, and the deployment that serves one."""
