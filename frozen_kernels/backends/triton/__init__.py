DEVICES = ("cuda",)


def reasons():
    return ["not there"]
