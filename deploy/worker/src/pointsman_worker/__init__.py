"""Pointsman's inference worker: one process that serves one model over gRPC.

`domain` says what a question, an answer and a backend are, and touches nothing. `application` runs questions:
admission, deadlines, drain, presence. `infrastructure` performs: backends, Consul, metrics, logs, settings. `interface`
speaks gRPC and HTTP, and starts the process. Each imports only those that stand before it.
"""

__version__ = "0.1.0"
