"""granian, by code, its workers not forked: as it does by itself from Python 3.14 on."""

import multiprocessing
import sys

from granian import Granian

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    Granian("asgi_app:app", interface="asgi", port=int(sys.argv[1])).serve()
