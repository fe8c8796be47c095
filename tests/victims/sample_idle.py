"""An interpreter that waits, in one thread besides the main one as well."""

import sys
import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
