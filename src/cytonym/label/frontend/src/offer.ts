// A page of suggestions of one class, out of which some cells are taken.

export interface Offer {
  label: number;
  expected: number; // how many may be right
  labelled: number | null; // how many got the class; null as long as the page is open
}

/** Cells behind the last kept one. Those before it are known to be taken out from the labels alone. */
export function leftBehind(rows: Uint32Array, kept: (row: number) => boolean): Uint32Array {
  let end = rows.length;
  while (end > 0 && !kept(rows[end - 1] as number)) end--;
  return rows.slice(end);
}
