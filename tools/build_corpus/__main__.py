import sys

from tools.build_corpus.cli import main

if __name__ == "__main__":
    sys.exit(main())
