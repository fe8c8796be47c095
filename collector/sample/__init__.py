"""Where the threads of live processes are, again and again, without stopping one."""
