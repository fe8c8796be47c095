// An event loop that waits.
process.stdin.resume();
process.stdout.write("ready\n");
