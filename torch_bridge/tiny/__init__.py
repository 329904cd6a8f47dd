"""The small trained pair: the classes of the large one at a hundredth of the width, answering about the small world."""
