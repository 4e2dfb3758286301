"""What `jaxllm bench` measures."""
