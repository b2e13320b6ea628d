// A page of suggestions of one class, out of which some cells are taken.

export interface Offer {
  label: number;
  expected: number; // how many may be right
  model: string | null; // version of the model that made the page
  labelled: number | null; // how many got the class; null as long as the page is open
}

/** Cells that were taken out before the last kept one, and those behind it, which were perhaps not looked at. */
export function takenOut(rows: Uint32Array, kept: (row: number) => boolean): { before: Uint32Array; behind: Uint32Array } {
  let end = rows.length;
  while (end > 0 && !kept(rows[end - 1] as number)) end--;
  return { before: rows.slice(0, end).filter((row) => !kept(row)), behind: rows.slice(end) };
}
