"""The decoder in native code, where the machine has a C compiler."""
