DEVICES = ("cpu",)


def reasons():
    return ["the extension was not built"]
