"""gRPC and HTTP in, and the process itself."""
