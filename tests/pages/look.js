// What a reader sees of the page in this window; evaluated in it, and nothing of the page's own calls it.
(() => {
  const shown = (node) => node.getClientRects().length > 0;
  const parse = (colour) => {
    const [red, green, blue, alpha = 1] = colour.match(/[\d.]+/g).map(Number);
    return { red, green, blue, alpha };
  };
  const luminance = ({ red, green, blue }) => {  // WCAG 2
    const linear = (part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  };
  const ground = (element) => {
    for (let place = element; place; place = place.parentElement) {
      const colour = parse(getComputedStyle(place).backgroundColor);
      if (colour.alpha > 0) return colour;
    }
    return { red: 255, green: 255, blue: 255, alpha: 1 };
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (node.textContent.trim() && shown(element) && element.tagName !== "STYLE") texts.push([node.textContent.trim(), element, node]);
  }
  const contrasts = texts.map(([text, element]) => {
    const style = getComputedStyle(element);
    const ink = luminance(parse(element.closest("svg") ? style.fill : style.color)), paper = luminance(ground(element));
    return [(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), text.slice(0, 40)];
  });
  const overlaps = [], outside = [];
  for (const drawing of [...document.querySelectorAll("svg")].filter(shown)) {
    const labels = [...drawing.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    const frame = drawing.getBoundingClientRect();
    labels.forEach(([text, box], index) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        outside.push(text);
      for (const [other, rival] of labels.slice(index + 1))
        if (Math.min(box.right, rival.right) - Math.max(box.left, rival.left) > 1 &&
            Math.min(box.bottom, rival.bottom) - Math.max(box.top, rival.top) > 4)
          overlaps.push(`${text} | ${other}`);
    });
  }
  // A font without Hanzi draws all of them as the same box.
  const hanzi = [...new Set(texts.map(([text]) => text).join("").match(/\p{Script=Han}/gu) || [])];
  const canvas = new OffscreenCanvas(40, 40), pen = canvas.getContext("2d", { willReadFrequently: true });
  const family = getComputedStyle(document.querySelector("[lang=zh-CN]") || document.body).fontFamily;
  const drawings = hanzi.slice(0, 50).map((character) => {
    pen.clearRect(0, 0, 40, 40);
    pen.font = `30px ${family}`;
    pen.fillText(character, 4, 32);
    return pen.getImageData(0, 0, 40, 40).data.join();
  });
  const broken = [];  // words that go on in the next line
  for (const [, , node] of texts)
    for (const word of node.textContent.matchAll(/[A-Za-z]+/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (word[0].length < 20 && new Set([...range.getClientRects()].map((box) => box.top)).size > 1) broken.push(word[0]);
    }
  return {
    texts: texts.length,
    page: luminance(ground(document.body)),
    contrasts: contrasts.sort((one, other) => one[0] - other[0]).slice(0, 8),
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    overlaps,
    outside,
    broken,
    hanzi: hanzi.length,
    drawings: new Set(drawings).size,
    compared: drawings.length,
  };
})()
