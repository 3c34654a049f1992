"""What stands behind `align.engine.open_engine`: vLLM in process, an OpenAI-compatible server, transformers."""
