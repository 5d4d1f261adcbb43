"""Entry point. It imports nothing by itself: vLLM's processes load the program's main again."""

import importlib

if __name__ == "__main__":
    importlib.import_module("bench.chat_server").main()
