for (const plot of document.querySelectorAll('.plot')) {
  const curves = JSON.parse(plot.dataset.curves), last = Number(plot.dataset.last);
  const steps = [...new Set(curves.flatMap(([, points]) => points.map(p => p[0])))];
  const output = plot.parentElement.querySelector('output'), mark = plot.querySelector('u');
  let now = 0;
  steps.sort((a, b) => a - b);
  function show(index) {
    now = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[now];
    const here = curves.flatMap(([label, points]) => points.filter(p => p[0] === step).map(
      p => p[1] + (curves.length > 1 ? ' ' + label : '')));
    output.textContent = 'step ' + step.toLocaleString('en') + ': ' + here.join(', ');
    mark.style.display = 'block';
    mark.style.left = 100 * step / last + '%';
  }
  function hide() {
    output.textContent = '';
    mark.style.display = 'none';
  }
  plot.addEventListener('pointermove', event => {
    const box = plot.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * last;
    show(steps.reduce((best, step, i) =>
      Math.abs(step - at) < Math.abs(steps[best] - at) ? i : best, 0));
  });
  plot.addEventListener('pointerleave', hide);
  plot.addEventListener('focus', () => show(steps.length - 1));
  plot.addEventListener('blur', hide);
  plot.addEventListener('keydown', event => {
    const move = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: steps.length - 1}[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(move);
  });
}
