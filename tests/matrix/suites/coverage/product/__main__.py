import sys

from . import narrow


def main():
    print(narrow(int(sys.argv[1])))


main()
