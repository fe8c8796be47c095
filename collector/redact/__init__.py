"""What must not be kept of a process: the rules of a policy, and where they hold."""
