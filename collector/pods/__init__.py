"""Which pod of Kubernetes a process ran in, and what it is called, without the API server."""
