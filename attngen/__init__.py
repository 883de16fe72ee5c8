"""attngen: from a short YAML spec of an attention variant to a stand-alone, checked Triton kernel."""
