"""The networks, the losses, the altering of images, and the training step."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers import Adam

import gan

DCGAN = {"MODEL": "dcgan", "CHANNELS": 4, "BATCH_NORM": True}
OTHERS = {"BATCH_NORM": "G", "LOSS": "minimax", "PRIOR": (-1.0, 1.0)}


def batches(images, count):
    """Return count batches of the images in their order, as GAN.train takes them."""
    size = gan.D_STEPS * gan.BATCH_SIZE
    chosen = np.resize(np.arange(len(images)), count * size)
    return images[chosen].reshape(count, gan.D_STEPS, gan.BATCH_SIZE, *images.shape[1:])


def values(variables):
    return [variable.numpy() for variable in variables]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# Networks ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("output, low", [("tanh", -1), ("sigmoid", 0)])
def test_images_stay_in_the_range_of_output(small, output, low):
    small(OUTPUT=output, PRIOR="normal")
    fakes = gan.build_generator((8, 8, 1))(1e3 * gan.draw_noise(50, 0)).numpy()
    assert fakes.min() == pytest.approx(low, abs=0.01) and fakes.max() == pytest.approx(1, abs=0.01)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)  # survive the way there and back
    identity = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Identity()])
    assert np.array_equal(gan.generate(identity, gan.to_floats(pixels)), pixels)


def test_noise_is_a_function_of_seed_and_key_and_follows_its_prior(small):
    small(Z_SIZE=50, CATEGORIES=1, PRIOR=(0.0, 10.0))
    first, again, other = (gan.draw_noise(200, key).numpy() for key in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (200, 50) and 0 <= first.min() < 0.1 and 9.9 < first.max() < 10
    small(PRIOR="normal", CATEGORIES=5)
    normal = gan.draw_noise(200, 3).numpy()
    assert normal.shape == (200, 55)
    assert abs(normal.mean()) < 0.05 and normal.std() == pytest.approx(1, abs=0.05)
    small(SEED=1)
    assert not np.array_equal(gan.draw_noise(200, 3), normal)


def test_the_length_of_z_has_no_part_in_a_sphere_and_the_largest_score_chooses_the_category(small):
    small(CATEGORIES=3, PRIOR="sphere")
    generator, z = gan.build_generator((8, 8, 1)), np.random.default_rng(0).normal(size=8)
    kinds = [[9, 0, 0], [1, -5, 0.9], [0, 9, 0], [0, 0, 9]]
    noise = np.array([[*z, *kind] for kind in kinds], np.float32)
    first, again, second, third = generator(noise).numpy()
    assert np.array_equal(first, again)
    assert not np.allclose(first, second, atol=0.01) and not np.allclose(second, third, atol=0.01)
    assert np.allclose(generator(7 * noise)[3], third, atol=1e-6)


# Losses -----------------------------------------------------------------------------------------
def test_losses_are_sigmoid_cross_entropy_with_one_sided_smoothing(small):
    small(SMOOTH=0.1)
    real, fake = np.array([[-1.0], [2.0]], np.float32), np.array([[0.5], [-3.0]], np.float32)
    smooth = 0.9 * np.logaddexp(0, -real) + 0.1 * np.logaddexp(0, real)
    expected = smooth.mean() + np.logaddexp(0, fake).mean()
    assert gan.discriminator_loss(real, fake).numpy() == pytest.approx(expected)
    assert gan.generator_loss(fake).numpy() == pytest.approx(np.logaddexp(0, -fake).mean())
    small(LOSS="minimax")
    assert gan.generator_loss(fake).numpy() == pytest.approx(-np.logaddexp(0, fake).mean())


@pytest.mark.parametrize("augment", [False, True])
def test_the_gradient_penalty_is_the_mean_squared_slope_at_the_images(small, images, augment):
    small(AUGMENT=augment, BATCH_SIZE=20, GRADIENT_PENALTY=0.5)  # times 8 / 2
    model, losses = gan.GAN(images), []
    model.update = lambda network, optimizer, tape, loss: losses.append(float(loss))
    _, d_loss, *_ = model.train_step(batches(images, 1)[0], np.int64(0), True)
    real, squares = gan.to_floats(images[:20]), 0
    fake = model.generator(gan.draw_noise(20, 0))
    for floats, purpose in ((real, 0), (fake, 1)):
        for i in range(64):  # by finite differences, a pixel at a time
            step = (1e-2 * np.eye(64)[i].reshape(8, 8, 1)).astype(np.float32)
            moved = [gan.augment(floats + sign * step, 0, purpose) for sign in (1, -1)]
            ends = [model.discriminator(pixels) for pixels in moved]
            squares += np.sum(np.square((ends[0] - ends[1]) / 2e-2)) / 20
    assert losses[0] == pytest.approx(float(d_loss) + 2.0 * squares, rel=0.02)


# Altered images ---------------------------------------------------------------------------------
def test_augment_shifts_mirrors_and_blanks_a_square_differently_in_each_image(small):
    small(AUGMENT=True)
    pixels = np.arange(1, 257, dtype=np.float32).reshape(16, 16)  # so each tells where it was
    images = tf.constant(np.tile(pixels[..., None], (300, 1, 1, 1)))
    altered, *others = (gan.augment(images, *words) for words in ((5, 0), (6, 0), (5, 1), (5, 0)))
    assert [np.array_equal(altered, other) for other in others] == [False, False, True]
    found = set()
    for image in altered.numpy()[..., 0]:
        for down, right, mirror in np.ndindex(5, 5, 2):
            moved = np.pad(pixels[:, ::-1] if mirror else pixels, 2, "edge")
            moved, blank = moved[down:, right:][:16, :16], image == 0.5  # grey
            if np.array_equal(np.where(blank, 0.5, moved), image):
                break
        else:
            raise AssertionError(f"neither shifted nor mirrored:\n{image}")
        rows, columns = np.flatnonzero(blank.any(1)), np.flatnonzero(blank.any(0))
        assert blank[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) <= 8 and len(columns) <= 8
        found.add((down, right, mirror))
    assert len(found) == 50  # shifts of up to 2 pixels each way, with and without the mirror
    assert len({image.tobytes() for image in altered.numpy()}) > 250


# Training ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [{}, {"AUGMENT": True}, {"CATEGORIES": 3}, DCGAN, OTHERS])
def test_both_networks_and_the_average_move(small, images, settings):
    small(**settings)
    model = gan.GAN(images)
    variables = [*model.generator.variables, *model.discriminator.variables]
    variables += model.average.variables
    before = values(variables)
    model.train(batches(images, 2), 0, 0)
    for variable, old in zip(variables, before):
        assert not np.array_equal(variable.numpy(), old), variable.path


def test_an_epoch_is_a_pass_over_the_data_but_of_10000_images_at_least(small):
    cases = (70000, 50, 1, 1400), (70000, 50, 2, 700), (9, 20, 1, 500)
    for count, size, d_steps, length in cases:
        small(BATCH_SIZE=size, D_STEPS=d_steps)
        images = np.broadcast_to(np.uint8(0), (count, 8, 8, 1))
        assert gan.GAN(images).epoch_iterations == length


@pytest.mark.parametrize("size", [100, 200])
def test_every_pass_over_the_images_has_its_own_order_also_below_a_batch(small, tmp_path, size):
    small(BATCH_SIZE=size)
    images, seen = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1), []
    model = gan.GAN(images)
    model.train = lambda batches, step, images_used: seen.extend(batches.ravel())
    for model.epoch in (0, 1):
        model.position = 0
        assert gan.train_epoch(model, images, tmp_path)
    orders = np.reshape(seen, (200, 100))  # an epoch is 10,000 images, so 100 passes
    assert np.array_equal(np.sort(orders), np.tile(np.arange(100), (200, 1)))
    assert len({order.tobytes() for order in orders}) == 200


def test_discriminator_and_generator_take_their_own_numbers_of_steps(small, images):
    small(D_STEPS=3, G_STEPS=2)
    model = gan.GAN(images)
    model.train(batches(images, 4), 0, 0)
    assert int(model.d_optimizer.iterations) == 12
    assert int(model.g_optimizer.iterations) == 8


def test_training_is_a_function_of_the_seed_however_it_is_cut_into_chunks(small, images):
    small(BATCH_NORM=True, AUGMENT=True, CATEGORIES=3)
    all_batches, ends = batches(images, 7), []
    for seed, cuts in ((0, (0, 7)), (0, (0, 1, 5, 7)), (1, (0, 7))):
        small(SEED=seed)
        model = gan.GAN(images)
        for first, last in itertools.pairwise(cuts):
            model.train(all_batches[first:last], first, first * gan.BATCH_SIZE)
        ends.append(values(model.variables()))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


@pytest.mark.parametrize("beta_1, beta_2", [(0.0, 0.99), (0.9, 0.999)])
def test_the_fused_adam_moves_variables_as_that_of_keras(beta_1, beta_2):
    ends = []
    for kind in (gan.FusedAdam, Adam):
        variables = keras.Variable(np.ones((3, 4), np.float32)), keras.Variable(2.0)
        optimizer = kind(0.01, beta_1, beta_2)
        for i in range(5):
            gradients = tf.reshape(tf.cos(tf.range(12.0) + i), (3, 4)), tf.constant(0.1 * i)
            optimizer.apply_gradients(zip(gradients, variables))
        ends.append(values((*variables, *optimizer.variables)))
    for fused, plain in zip(*ends, strict=True):
        assert np.allclose(fused, plain, rtol=1e-5)
    assert not np.allclose(ends[0][0], 1, atol=0.01)


def test_learning_rates_fall_linearly_to_zero_or_stay(small, images):
    small(G_RATE=1.5)
    for decay, left in ((True, 0.25), (False, 1.0)):
        small(LR_DECAY=decay)
        model = gan.GAN(images)  # 2 epochs of 10,000 images
        model.train(batches(images, 1), 150, 15000)
        rates = model.d_optimizer.learning_rate, model.g_optimizer.learning_rate
        expected = gan.LEARNING_RATE * left, gan.LEARNING_RATE * left * 1.5
        assert values(rates) == pytest.approx(expected)


def test_the_average_warms_up_then_follows_its_decay_or_is_the_generator(small, images):
    small(EMA=0.95)
    model = gan.GAN(images)
    expected = values(model.average.variables)
    for step, decay in ((0, 0.1**10), (10, (11 / 20) ** 10), (1, 1), (990, 0.95**10)):
        model.train(batches(images, 1), step, 0)
        pairs = zip(expected, values(model.generator.variables))
        expected = [decay * average + (1 - decay) * value for average, value in pairs]
        for average, value in zip(values(model.average.variables), expected):
            assert np.allclose(average, value, atol=1e-6)
    small(EMA=0)
    model = gan.GAN(images)
    assert model.average is model.generator


def test_batch_normalization_learns_statistics_so_no_picture_depends_on_another(small, images):
    small(BATCH_NORM=True)
    model = gan.GAN(images)
    model.train(batches(images, 40), 0, 0)
    for network in (model.generator, model.discriminator):
        norm = next(x for x in network.layers if isinstance(x, keras.layers.BatchNormalization))
        assert np.abs(norm.moving_mean.numpy()).max() > 0.01
        assert not np.allclose(norm.moving_variance.numpy(), 1)
    noise = gan.draw_noise(20, -1)
    pictures = gan.generate(model.average, noise), gan.generate(model.average, noise[:5])
    assert np.array_equal(pictures[0][:5], pictures[1])


def test_metrics_are_means_over_the_iterations(small, images):
    small(LEARNING_RATE=1e-12, GRADIENT_PENALTY=0, D_HIDDEN=4, BATCH_SIZE=20)
    model = gan.GAN(images)
    model.train(batches(images, 5), 0, 0)
    iterations, *sums = model.sums.numpy()
    real = model.discriminator(gan.to_floats(images))
    noise = [gan.draw_noise(20, key) for key in range(5)]
    fake = model.discriminator(model.generator(tf.concat(noise, 0)))
    expected = [gan.discriminator_loss(real, fake), gan.generator_loss(fake)]
    expected += [tf.reduce_mean(tf.sigmoid(logits)) for logits in (real, fake)]
    assert iterations == 5
    assert sums[:4] == pytest.approx([5 * float(mean) for mean in expected], rel=1e-4)
    assert sums[4] / 5 == pytest.approx(np.mean([real > 0, fake < 0]), abs=0.011)


def test_a_short_training_on_drawn_digits_shows_varied_digits(small):
    small(Z_SIZE=32, G_HIDDEN=256, D_HIDDEN=128, BATCH_SIZE=100, LR_DECAY=False)
    digits = gan.draw_digits(6000)
    model = gan.GAN(digits)
    model.train(batches(digits, 300), 0, 0)
    fakes = gan.generate(model.average, gan.draw_noise(200, -1)).astype(float)
    assert np.std(fakes, axis=0).mean() > 0.5 * np.std(digits, axis=0).mean()
    # Bright in the middle and black at the rim, as the digits are.
    assert fakes[:, 8:20, 8:20].mean() > 5 * fakes[:, :3].mean()
