import sys

from tools.build_shards.cli import main

if __name__ == "__main__":
    sys.exit(main())
