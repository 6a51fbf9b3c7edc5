for (const plot of document.querySelectorAll('.plot')) {
  const curves = JSON.parse(plot.dataset.curves), last = Number(plot.dataset.last);
  const output = plot.parentElement.querySelector('output'), mark = plot.querySelector('u');
  plot.addEventListener('pointermove', event => {
    const box = plot.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * last;
    const near = curves.map(([label, points]) => [label, points.reduce(
      (a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)]);
    const step = near.map(([, p]) => p[0]).reduce(
      (a, b) => Math.abs(b - at) < Math.abs(a - at) ? b : a);
    const here = near.filter(([, p]) => p[0] === step);
    output.textContent = 'step ' + step.toLocaleString('en') + ': ' + here.map(
      ([label, p]) => p[1] + (curves.length > 1 ? ' ' + label : '')).join(', ');
    mark.style.display = 'block';
    mark.style.left = 100 * step / last + '%';
  });
  plot.addEventListener('pointerleave', () => {
    output.textContent = '';
    mark.style.display = 'none';
  });
}
