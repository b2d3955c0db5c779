if __name__ != "draftpick.deploy":
    from draftpick.former_names import redirect

    redirect(__name__)
