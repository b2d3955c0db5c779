// Before anything is painted: the theme that was chosen here before. Without one, the system's holds.
{
  const chosen = localStorage.getItem("draftpick.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
