"""llama.cpp: models in GGUF files, on a CPU or a GPU."""
