"""From a scheduled graph to the text of a stand-alone module. Reads `attngen.ir` only."""
