// A set of rows, one bit each.

export class Bitset {
  readonly words: Uint32Array;
  count = 0;

  constructor(readonly size: number) {
    this.words = new Uint32Array(Math.ceil(size / 32));
  }

  has(row: number): boolean {
    return ((this.words[row >>> 5] as number) & (1 << (row & 31))) !== 0;
  }

  add(row: number): void {
    const word = row >>> 5;
    const bit = 1 << (row & 31);
    const old = this.words[word] as number;
    if (old & bit) return;
    this.words[word] = old | bit;
    this.count++;
  }

  delete(row: number): void {
    const word = row >>> 5;
    const bit = 1 << (row & 31);
    const old = this.words[word] as number;
    if (!(old & bit)) return;
    this.words[word] = old & ~bit;
    this.count--;
  }

  toggle(row: number): void {
    if (this.has(row)) this.delete(row);
    else this.add(row);
  }

  addAll(rows: ArrayLike<number>): void {
    for (let i = 0; i < rows.length; i++) this.add(rows[i] as number);
  }

  deleteAll(rows: ArrayLike<number>): void {
    for (let i = 0; i < rows.length; i++) this.delete(rows[i] as number);
  }

  clear(): void {
    this.words.fill(0);
    this.count = 0;
  }

  /** The rows in ascending order. */
  rows(): Uint32Array {
    const out = new Uint32Array(this.count);
    let k = 0;
    for (let w = 0; w < this.words.length; w++) {
      let word = this.words[w] as number;
      while (word !== 0) {
        const low = word & -word;
        out[k++] = w * 32 + (31 - Math.clz32(low));
        word ^= low;
      }
    }
    return out;
  }
}
