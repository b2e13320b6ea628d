// Draws points with WebGL2: coordinates stay the pairs of uint16 that arrived, colours are one byte a point.

export interface View {
  // the part of 0 … 65535 that is in the middle, and units per CSS pixel
  x: number;
  y: number;
  ux: number;
  uy: number;
}

const VERTEX = `#version 300 es
in vec2 place; in float tone; in float hidden;
uniform vec2 center; uniform vec2 scale; uniform float size; uniform sampler2D table; uniform float alpha; uniform bool flip;
out vec4 color;
void main() {
  vec2 p = (place - center) * scale;
  gl_Position = hidden > 0.5 ? vec4(2.0, 2.0, 2.0, 1.0) : vec4(p.x, flip ? p.y : -p.y, 0.0, 1.0);
  gl_PointSize = size;
  color = vec4(texelFetch(table, ivec2(int(tone + 0.5), 0), 0).rgb, alpha);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 color; uniform bool disc; out vec4 result;
void main() {
  float a = color.a;
  if (disc) {
    float r = length(gl_PointCoord - 0.5) * 2.0;
    a *= 1.0 - smoothstep(0.75, 1.0, r);
    if (a <= 0.0) discard;
  }
  result = vec4(color.rgb * a, a);
}`;
const IMAGE_VERTEX = `#version 300 es
in vec2 corner; uniform vec4 box; out vec2 at;
void main() { at = vec2(corner.x, 1.0 - corner.y); gl_Position = vec4(mix(box.xy, box.zw, corner), 0.0, 1.0); }`;
const IMAGE_FRAGMENT = `#version 300 es
precision mediump float;
in vec2 at; uniform sampler2D picture; out vec4 result;
void main() { result = texture(picture, at); }`;

export function program(gl: WebGL2RenderingContext, vertex: string, fragment: string): WebGLProgram {
  const made = gl.createProgram() as WebGLProgram;
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]] as const) {
    const shader = gl.createShader(kind) as WebGLShader;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error(`WebGL: ${gl.getProgramInfoLog(made) ?? "the shaders do not link"}`);
  }
  return made;
}

export function uniforms(gl: WebGL2RenderingContext, of: WebGLProgram, names: string[]): { [name: string]: WebGLUniformLocation | null } {
  return Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(of, name)]));
}

export class PointRenderer {
  private gl: WebGL2RenderingContext;
  private points!: WebGLProgram;
  private image!: WebGLProgram;
  private at!: { [name: string]: WebGLUniformLocation | null };
  private box!: WebGLUniformLocation | null;
  private buffers!: { place: WebGLBuffer; tone: WebGLBuffer; hidden: WebGLBuffer; corner: WebGLBuffer };
  private arrays!: { points: WebGLVertexArrayObject; image: WebGLVertexArrayObject };
  private textures!: { table: WebGLTexture; density: WebGLTexture };
  private n = 0;
  private lists: { [name: string]: { buffer: WebGLBuffer; n: number } } = {};

  constructor(readonly canvas: HTMLCanvasElement) {
    const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true, alpha: true });
    if (!gl) throw new Error("This browser offers no WebGL2, which the map needs.");
    this.gl = gl;
    this.create();
  }

  /** Makes everything on the graphics card; again after the browser took it away. */
  create(): void {
    const gl = this.gl;
    this.points = program(gl, VERTEX, FRAGMENT);
    this.image = program(gl, IMAGE_VERTEX, IMAGE_FRAGMENT);
    this.at = uniforms(gl, this.points, ["center", "scale", "size", "table", "alpha", "flip", "disc"]);
    this.box = gl.getUniformLocation(this.image, "box");
    const buffer = (): WebGLBuffer => gl.createBuffer() as WebGLBuffer;
    this.buffers = { place: buffer(), tone: buffer(), hidden: buffer(), corner: buffer() };
    this.lists = { chosen: { buffer: buffer(), n: 0 }, front: { buffer: buffer(), n: 0 } };
    this.arrays = { points: gl.createVertexArray() as WebGLVertexArrayObject, image: gl.createVertexArray() as WebGLVertexArrayObject };
    gl.bindVertexArray(this.arrays.points);
    const attribute = (name: string, from: WebGLBuffer, size: number, type: number, normalized: boolean): void => {
      const location = gl.getAttribLocation(this.points, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, from);
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, size, type, normalized, 0, 0);
    };
    attribute("place", this.buffers.place, 2, gl.UNSIGNED_SHORT, false);
    attribute("tone", this.buffers.tone, 1, gl.UNSIGNED_BYTE, false);
    attribute("hidden", this.buffers.hidden, 1, gl.UNSIGNED_BYTE, false);
    gl.bindVertexArray(this.arrays.image);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.corner);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]), gl.STATIC_DRAW);
    const corner = gl.getAttribLocation(this.image, "corner");
    gl.enableVertexAttribArray(corner);
    gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
    gl.bindVertexArray(null);
    const texture = (): WebGLTexture => {
      const made = gl.createTexture() as WebGLTexture;
      gl.bindTexture(gl.TEXTURE_2D, made);
      for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
      for (const way of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, way, gl.LINEAR);
      return made;
    };
    this.textures = { table: texture(), density: texture() };
  }

  /** Lets the browser have its context back, of which it has few. */
  close(): void {
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  setPoints(xy: Uint16Array): void {
    const gl = this.gl;
    this.n = xy.length >> 1;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.place);
    gl.bufferData(gl.ARRAY_BUFFER, xy, gl.STATIC_DRAW);
  }

  setTones(tones: Uint8Array, table: Uint8Array, hidden: Uint8Array | undefined): void {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.tone);
    gl.bufferData(gl.ARRAY_BUFFER, tones, gl.DYNAMIC_DRAW);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.hidden);
    gl.bufferData(gl.ARRAY_BUFFER, hidden ?? new Uint8Array(tones.length), gl.DYNAMIC_DRAW);
    gl.bindTexture(gl.TEXTURE_2D, this.textures.table);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, table);
  }

  setChosen(rows: Uint32Array): void {
    this.setList("chosen", rows);
  }

  setFront(rows: Uint32Array): void {
    this.setList("front", rows);
  }

  private setList(name: string, rows: Uint32Array): void {
    const gl = this.gl;
    const list = this.lists[name];
    if (!list) return;
    list.n = rows.length;
    gl.bindVertexArray(this.arrays.points);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, list.buffer);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, rows, gl.DYNAMIC_DRAW);
    gl.bindVertexArray(null);
  }

  setDensity(pixels: Uint8Array, width: number, height: number): void {
    const gl = this.gl;
    gl.bindTexture(gl.TEXTURE_2D, this.textures.density);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, width, height, 0, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  }

  clear(): void {
    const gl = this.gl;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  /** The density, made for another view, at its place in this one. */
  drawDensity(made: View, width: number, height: number, view: View, flip: boolean): void {
    const gl = this.gl;
    const edge = (x: number, c: number, u: number, w: number): number => ((x - c) / u / w) * 2;
    const sign = flip ? 1 : -1;
    const [left, right] = [-1, 1].map((s) => edge(made.x + (s * width * made.ux) / 2, view.x, view.ux, width)) as [number, number];
    const [top, bottom] = [-1, 1].map((s) => sign * edge(made.y + (s * sign * -1 * height * made.uy) / 2, view.y, view.uy, height)) as [number, number];
    gl.useProgram(this.image);
    gl.bindVertexArray(this.arrays.image);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.textures.density);
    gl.uniform4f(this.box, left, Math.min(top, bottom), right, Math.max(top, bottom));
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    gl.bindVertexArray(null);
  }

  drawPoints(view: View, width: number, height: number, flip: boolean, size: number, alpha: number, which: "all" | "chosen" | "front"): void {
    const gl = this.gl;
    const ratio = this.canvas.width / width;
    gl.useProgram(this.points);
    gl.bindVertexArray(this.arrays.points);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.textures.table);
    gl.uniform1i(this.at["table"] as WebGLUniformLocation, 0);
    gl.uniform2f(this.at["center"] as WebGLUniformLocation, view.x, view.y);
    gl.uniform2f(this.at["scale"] as WebGLUniformLocation, 2 / (width * view.ux), 2 / (height * view.uy));
    gl.uniform1f(this.at["size"] as WebGLUniformLocation, Math.max(1, size * ratio));
    gl.uniform1f(this.at["alpha"] as WebGLUniformLocation, alpha);
    gl.uniform1i(this.at["flip"] as WebGLUniformLocation, flip ? 1 : 0);
    gl.uniform1i(this.at["disc"] as WebGLUniformLocation, size * ratio > 2.5 ? 1 : 0);
    const list = this.lists[which];
    if (list) {
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, list.buffer);
      gl.drawElements(gl.POINTS, list.n, gl.UNSIGNED_INT, 0);
    } else gl.drawArrays(gl.POINTS, 0, this.n);
    gl.bindVertexArray(null);
  }
}

/** How many points lie in each small square of the view, as an image: the mean colour, the more opaque the more points. */
export function densityImage(
  points: Uint16Array, tones: Uint8Array, table: Uint8Array, hidden: Uint8Array | undefined, view: View, width: number, height: number,
  columns: number, rows: number, flip: boolean,
): { pixels: Uint8Array; inView: number } {
  const sums = new Float32Array(columns * rows * 4);
  const kx = columns / (width * view.ux);
  const ky = rows / (height * view.uy);
  const [x0, y0] = [view.x - (width * view.ux) / 2, view.y - (height * view.uy) / 2];
  let inView = 0;
  for (let i = 0, n = points.length >> 1; i < n; i++) {
    if (hidden && hidden[i]) continue;
    const fx = ((points[2 * i] as number) - x0) * kx;
    const fy = ((points[2 * i + 1] as number) - y0) * ky;
    if (fx < 0 || fy < 0 || fx >= columns || fy >= rows) continue;
    const at = 4 * ((fy | 0) * columns + (fx | 0));
    const tone = 4 * (tones[i] as number);
    sums[at] = (sums[at] as number) + (table[tone] as number);
    sums[at + 1] = (sums[at + 1] as number) + (table[tone + 1] as number);
    sums[at + 2] = (sums[at + 2] as number) + (table[tone + 2] as number);
    sums[at + 3] = (sums[at + 3] as number) + 1;
    inView++;
  }
  let most = 1;
  for (let i = 3; i < sums.length; i += 4) most = Math.max(most, sums[i] as number);
  const strength = 1 / Math.log1p(most);
  const pixels = new Uint8Array(columns * rows * 4);
  for (let r = 0; r < rows; r++) {
    const to = flip ? rows - 1 - r : r; // the first row of the picture is its top
    for (let c = 0; c < columns; c++) {
      const at = 4 * (r * columns + c);
      const n = sums[at + 3] as number;
      if (!n) continue;
      const alpha = 0.3 + 0.7 * Math.log1p(n) * strength;
      const out = 4 * (to * columns + c);
      for (let k = 0; k < 3; k++) pixels[out + k] = ((sums[at + k] as number) / n) * alpha;
      pixels[out + 3] = 255 * alpha;
    }
  }
  return { pixels, inView };
}
