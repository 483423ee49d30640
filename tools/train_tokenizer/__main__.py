import sys

from tools.train_tokenizer.cli import main

if __name__ == "__main__":
    sys.exit(main())
