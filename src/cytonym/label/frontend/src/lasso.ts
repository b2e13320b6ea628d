// Which points lie within a polygon: the polygon is drawn into a bitmap once, then every point is one look-up.

export type Polygon = [number, number][];

const OUTSIDE = 0;
const INSIDE = 1;
const EDGE = 2;

/** Even-odd rule. */
export function insidePolygon(x: number, y: number, polygon: Polygon): boolean {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i] as [number, number];
    const [xj, yj] = polygon[j] as [number, number];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

interface Bitmap {
  cells: Uint8Array;
  side: number;
  x0: number;
  y0: number;
  x1: number;
  y1: number;
  kx: number;
  ky: number;
}

/** The polygon on a grid over its bounding box; pixels that its outline crosses are marked, to be decided exactly. */
export function rasterize(polygon: Polygon, side = 1024): Bitmap {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of polygon) {
    x0 = Math.min(x0, x);
    x1 = Math.max(x1, x);
    y0 = Math.min(y0, y);
    y1 = Math.max(y1, y);
  }
  const kx = side / Math.max(x1 - x0, 1e-9);
  const ky = side / Math.max(y1 - y0, 1e-9);
  const cells = new Uint8Array(side * side);
  const corners = polygon.map(([x, y]) => [(x - x0) * kx, (y - y0) * ky] as [number, number]);
  for (let r = 0; r < side; r++) {
    const cuts: number[] = [];
    const y = r + 0.5;
    for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
      const [xi, yi] = corners[i] as [number, number];
      const [xj, yj] = corners[j] as [number, number];
      if (yi > y !== yj > y) cuts.push(((xj - xi) * (y - yi)) / (yj - yi) + xi);
    }
    cuts.sort((a, b) => a - b);
    for (let k = 0; k + 1 < cuts.length; k += 2) {
      const from = Math.max(0, Math.floor(cuts[k] as number));
      const to = Math.min(side - 1, Math.ceil(cuts[k + 1] as number));
      cells.fill(INSIDE, r * side + from, r * side + to + 1);
    }
  }
  const mark = (column: number, row: number): void => {
    for (let dr = -1; dr <= 1; dr++) {
      for (let dc = -1; dc <= 1; dc++) {
        const [c, r] = [column + dc, row + dr];
        if (c >= 0 && r >= 0 && c < side && r < side) cells[r * side + c] = EDGE;
      }
    }
  };
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [xi, yi] = corners[i] as [number, number];
    const [xj, yj] = corners[j] as [number, number];
    const steps = Math.max(1, Math.ceil(Math.max(Math.abs(xj - xi), Math.abs(yj - yi))));
    for (let s = 0; s <= steps; s++) {
      mark(Math.floor(xi + ((xj - xi) * s) / steps), Math.floor(yi + ((yj - yi) * s) / steps));
    }
  }
  return { cells, side, x0, y0, x1, y1, kx, ky };
}

/** Rows of the points (x, y interleaved) within the polygon; rows that `skip` marks are left out. */
export function lassoRows(points: Uint16Array, polygon: Polygon, skip?: Uint8Array): Uint32Array {
  if (polygon.length < 3) return new Uint32Array(0);
  const { cells, side, x0, y0, x1, y1, kx, ky } = rasterize(polygon);
  const n = points.length >> 1;
  const found = new Uint32Array(n);
  let k = 0;
  for (let i = 0; i < n; i++) {
    const x = points[2 * i] as number;
    if (x < x0 || x > x1) continue;
    const y = points[2 * i + 1] as number;
    if (y < y0 || y > y1) continue;
    const column = Math.min(side - 1, ((x - x0) * kx) | 0);
    const row = Math.min(side - 1, ((y - y0) * ky) | 0);
    const at = cells[row * side + column];
    if (at === OUTSIDE || (skip && skip[i])) continue;
    if (at === EDGE && !insidePolygon(x, y, polygon)) continue;
    found[k++] = i;
  }
  return found.slice(0, k);
}

/** The nearest point to a place, or -1 where none is within the radius. */
export function nearestPoint(points: Uint16Array, x: number, y: number, rx: number, ry: number, skip?: Uint8Array): number {
  let best = -1;
  let least = 1;
  for (let i = 0, n = points.length >> 1; i < n; i++) {
    const dx = ((points[2 * i] as number) - x) / rx;
    if (dx > 1 || dx < -1) continue;
    const dy = ((points[2 * i + 1] as number) - y) / ry;
    const d = dx * dx + dy * dy;
    if (d <= least && !(skip && skip[i])) {
      least = d;
      best = i;
    }
  }
  return best;
}
