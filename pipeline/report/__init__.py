"""The stage ``report``: metrics, plots and one page on the saved heads."""
