"""What touches the world: backends, Consul, metrics, logs, settings. Imports `domain` and `application`."""
