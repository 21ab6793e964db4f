"""gRPC and HTTP in, and the process itself."""

import os

# The library's C core writes lines of its own beside the log; what matters of them is raised as well.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
