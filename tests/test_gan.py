"""The networks, the losses and the training step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gan

SOFTPLUS = np.logaddexp


def batches(images, count):
    """Return count batches of the images in their order, as GAN.train takes them."""
    size = gan.D_STEPS * gan.BATCH_SIZE
    chosen = np.resize(np.arange(len(images)), count * size)
    return images[chosen].reshape(count, gan.D_STEPS, gan.BATCH_SIZE, *images.shape[1:])


def weights(network):
    return [variable.numpy() for variable in network.variables]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_default_networks_have_one_hidden_layer_each(small):
    small(Z_SIZE=100, G_HIDDEN=128, D_HIDDEN=256)
    assert gan.build_generator((28, 28, 1)).count_params() == 101 * 128 + 129 * 784
    assert gan.build_discriminator((28, 28, 1)).count_params() == 785 * 256 + 257


def test_a_tuple_of_widths_makes_a_deeper_network_for_rgb(small):
    small(Z_SIZE=10, G_HIDDEN=(20, 30))
    generator = gan.build_generator((5, 7, 3))
    assert generator.count_params() == 11 * 20 + 21 * 30 + 31 * 105
    assert generator(tf.zeros((4, 10))).shape == (4, 5, 7, 3)


@pytest.mark.parametrize("output, low", [("tanh", -1), ("sigmoid", 0)])
def test_images_stay_in_the_range_of_output(small, output, low):
    small(OUTPUT=output, PRIOR="normal")
    fakes = gan.build_generator((8, 8, 1))(1e3 * tf.random.normal((50, 8))).numpy()
    assert fakes.min() == pytest.approx(low, abs=0.01) and fakes.max() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("output", ["tanh", "sigmoid"])
def test_pixels_survive_the_way_to_floats_and_back(small, output):
    small(OUTPUT=output)
    pixels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(gan.to_pixels(gan.to_floats(pixels).numpy()), pixels)


def test_losses_are_sigmoid_cross_entropy_with_one_sided_smoothing(small):
    small(SMOOTH=0.1)
    real, fake = np.array([[-1.0], [2.0]], np.float32), np.array([[0.5], [-3.0]], np.float32)
    smooth = 0.9 * SOFTPLUS(0, -real) + 0.1 * SOFTPLUS(0, real)
    expected = smooth.mean() + SOFTPLUS(0, fake).mean()
    assert gan.discriminator_loss(real, fake).numpy() == pytest.approx(expected)
    assert gan.generator_loss(fake).numpy() == pytest.approx(SOFTPLUS(0, -fake).mean())
    small(LOSS="minimax")
    assert gan.generator_loss(fake).numpy() == pytest.approx(-SOFTPLUS(0, fake).mean())


def test_gradient_penalty_is_the_mean_squared_slope_at_the_images(small, images):
    discriminator = gan.build_discriminator((8, 8, 1))
    floats = gan.to_floats(images[:5])
    logits, penalty = gan.logits_and_penalty(discriminator, floats)
    slopes = []
    for i in range(64):  # by finite differences, a pixel at a time
        step = np.zeros((64,), np.float32)
        step[i] = 1e-2
        step = step.reshape(8, 8, 1)
        slopes.append((discriminator(floats + step) - discriminator(floats - step)) / 2e-2)
    assert np.array_equal(logits, discriminator(floats))
    assert float(penalty) == pytest.approx(np.sum(np.square(slopes)) / 5, rel=0.02)


def test_gradient_penalty_flattens_the_discriminator(small, images):
    slopes = []
    for weight in (0.0, 100.0):
        small(GRADIENT_PENALTY=weight, LEARNING_RATE=0.01, G_RATE=1, PENALTY_EVERY=1)
        model = gan.GAN(images)
        model.train(batches(images, 60), 0, 0)
        slopes.append(float(gan.logits_and_penalty(model.discriminator, gan.to_floats(images))[1]))
    assert slopes[1] < 0.5 * slopes[0]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_both_networks_and_the_average_move(small, images, batch_norm):
    small(BATCH_NORM=batch_norm)
    model = gan.GAN(images)
    networks = model.generator, model.discriminator, model.average
    before = [weights(network) for network in networks]
    model.train(batches(images, 2), 0, 0)
    for network, old in zip(networks, before):
        for variable, value in zip(network.variables, old):
            assert not np.array_equal(variable.numpy(), value), variable.path


@pytest.mark.parametrize("model, batch_norm", [("mlp", False), ("dcgan", False), ("dcgan", True)])
def test_bfloat16_has_nearly_the_gradients_of_float32_for_biases_too(small, model, batch_norm):
    def gradients(trained):
        with tf.GradientTape() as tape:
            fakes = trained.generator(gan.draw_noise(100, 0), training=True)
            loss = gan.generator_loss(trained.discriminator(fakes, training=True))
        return tape.gradient(loss, trained.generator.trainable_variables)

    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), np.uint8)
    found = []
    for precision in ("float32", "bfloat16"):
        small(PRECISION=precision, MODEL=model, BATCH_NORM=batch_norm)
        if model == "dcgan":
            small(G_HIDDEN=(16, 8), D_HIDDEN=(8, 16))
        trained = gan.GAN(images)
        variables = trained.generator.trainable_variables
        found.append([gradient.numpy() for gradient in tf.function(gradients)(trained)])
        assert all(variable.dtype == "float32" for variable in variables)
    if same(*found):
        pytest.skip("this TensorFlow has no bfloat16 on this CPU")
    for variable, exact, rounded in zip(variables, *found):
        if batch_norm and np.linalg.norm(exact) < 1e-5:
            continue  # a bias that batch normalisation takes away again
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert error < 0.1, f"{variable.path}: {error}"


def test_bfloat16_trains_nearly_as_float32(small, images):
    metrics = []
    for precision in ("float32", "bfloat16"):
        small(PRECISION=precision)
        trained = gan.GAN(images)
        trained.train(batches(images, 20), 0, 0)
        metrics.append(trained.sums.numpy() / 20)
    assert metrics[1] == pytest.approx(metrics[0], abs=0.1)


def test_discriminator_and_generator_take_their_own_numbers_of_steps(small, images):
    small(D_STEPS=3, G_STEPS=2)
    model = gan.GAN(images)
    model.train(batches(images, 4), 0, 0)
    assert int(model.d_optimizer.iterations) == 12
    assert int(model.g_optimizer.iterations) == 8


def test_training_does_not_depend_on_how_it_is_cut_into_chunks(small, images):
    small(BATCH_NORM=True)
    whole, cut = gan.GAN(images), gan.GAN(images)
    all_batches = batches(images, 7)
    whole.train(all_batches, 0, 0)
    for first, last in ((0, 1), (1, 5), (5, 7)):
        cut.train(all_batches[first:last], first, first * gan.BATCH_SIZE)
    assert same([v.numpy() for v in whole.variables()], [v.numpy() for v in cut.variables()])


def test_seeds_give_different_runs_and_the_same_seed_the_same_run(small, images):
    results = []
    for seed in (1, 1, 2):
        small(SEED=seed)
        model = gan.GAN(images)
        model.train(batches(images, 3), 0, 0)
        results.append(weights(model.generator))
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_noise_is_new_at_each_step_and_follows_its_prior(small):
    small(Z_SIZE=50, PRIOR=(0.0, 10.0))
    first, again, other = (gan.draw_noise(200, key).numpy() for key in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert 0 <= first.min() < 0.1 and 9.9 < first.max() < 10
    small(PRIOR="normal")
    normal = gan.draw_noise(200, 3).numpy()
    assert abs(normal.mean()) < 0.05 and normal.std() == pytest.approx(1, abs=0.05)


def test_the_sphere_prior_ignores_the_length_of_the_noise(small):
    small(PRIOR="sphere")
    generator, noise = gan.build_generator((8, 8, 1)), gan.draw_noise(5, 0)
    assert np.allclose(generator(noise), generator(7 * noise), atol=1e-6)


@pytest.mark.parametrize("beta_1, beta_2", [(0.0, 0.99), (0.9, 0.999)])
def test_the_fused_adam_moves_a_variable_as_that_of_keras_does(beta_1, beta_2):
    ends = []
    for kind in (gan.FusedAdam, keras.optimizers.Adam):
        variables = keras.Variable(np.ones((3, 4), np.float32)), keras.Variable(2.0)
        optimizer = kind(0.01, beta_1, beta_2)
        for i in range(5):
            gradients = tf.cos(tf.range(12.0) + i), tf.constant(0.1 * i)
            optimizer.apply_gradients(
                zip((tf.reshape(gradients[0], (3, 4)), gradients[1]), variables)
            )
        ends.append([variable.numpy() for variable in (*variables, *optimizer.variables)])
    for fused, plain in zip(*ends, strict=True):
        assert np.allclose(fused, plain, rtol=1e-5)
    assert not np.allclose(ends[0][0], 1, atol=0.01)


def test_learning_rates_fall_linearly_to_zero_or_stay(small, images):
    small(G_RATE=1.5)
    model = gan.GAN(images)  # 2 epochs of 100 images
    model.train(batches(images, 1), 5, 100)
    assert float(model.g_optimizer.learning_rate) == pytest.approx(gan.LEARNING_RATE * 0.75)
    assert float(model.d_optimizer.learning_rate) == pytest.approx(gan.LEARNING_RATE / 2)
    small(LR_DECAY=False)
    model = gan.GAN(images)
    model.train(batches(images, 1), 5, 100)
    assert float(model.g_optimizer.learning_rate) == pytest.approx(gan.LEARNING_RATE * 1.5)


def test_average_warms_up_then_follows_its_decay(small, images):
    small(EMA=0.95)
    model = gan.GAN(images)
    expected = weights(model.average)
    for step, decay in ((0, 0.1**10), (10, (11 / 20) ** 10), (1, 1), (990, 0.95**10)):
        model.train(batches(images, 1), step, 0)
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights(model.generator))]
        for average, value in zip(weights(model.average), expected):
            assert np.allclose(average, value, atol=1e-6)


def test_without_ema_the_pictures_show_the_generator_itself(small, images):
    small(EMA=0)
    model = gan.GAN(images)
    model.train(batches(images, 3), 0, 0)
    assert all(np.allclose(a, g) for a, g in zip(weights(model.average), weights(model.generator)))


def test_samples_do_not_depend_on_what_else_is_in_the_batch(small, images):
    small(BATCH_NORM=True)
    model = gan.GAN(images)
    model.train(batches(images, 3), 0, 0)
    noise = gan.draw_noise(20, -1)
    assert np.array_equal(
        gan.generate(model.average, noise)[:5], gan.generate(model.average, noise[:5])
    )


def test_batch_norm_statistics_follow_the_data(small, images):
    small(BATCH_NORM=True, GRADIENT_PENALTY=0)
    model = gan.GAN(images)
    model.train(batches(images, 40), 0, 0)
    for network in (model.generator, model.discriminator):
        norm = next(x for x in network.layers if isinstance(x, keras.layers.BatchNormalization))
        assert np.abs(norm.moving_mean.numpy()).max() > 0.01
        assert not np.allclose(norm.moving_variance.numpy(), 1)


@pytest.mark.parametrize("shape", [(32, 6), (8, 5, 3, 6)])
def test_batch_normalization_is_a_fused_kernel_that_does_what_keras_layer_does(shape):
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(3, 2, shape), tf.float32)
    factors = rng.normal(size=shape)

    @tf.function
    def everything(layer):
        with tf.GradientTape() as second:  # a penalty in D differentiates twice
            second.watch(inputs)
            with tf.GradientTape() as first:
                first.watch(inputs)
                outputs = layer(inputs, training=True)
                loss = tf.reduce_sum(outputs**3 * factors)
            slopes = first.gradient(loss, inputs)
            penalty = tf.reduce_sum(tf.square(slopes))
        gradients = second.gradient([loss, penalty], [inputs, *layer.trainable_variables])
        return outputs, slopes, *gradients

    found, kernels = [], []
    for layer in (keras.layers.BatchNormalization(momentum=0.7), gan.batch_normalization(0.7)):
        assert type(layer) is keras.layers.BatchNormalization  # opens without gan.py
        layer.build(shape)
        layer.gamma.assign(np.linspace(0.5, 2, 6))
        layer.beta.assign(np.linspace(-1, 1, 6))
        values = *everything(layer), *layer.variables, layer(inputs, training=False)
        found.append([tf.convert_to_tensor(value).numpy() for value in values])
        operations = everything.get_concrete_function(layer).graph.get_operations()
        kernels.append("FusedBatchNormV3" in {operation.type for operation in operations})
    assert kernels == [False, True]
    for expected, own in zip(*found, strict=True):
        assert np.allclose(own, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_metrics_are_means_over_the_iterations(small, images):
    small(LEARNING_RATE=1e-12, GRADIENT_PENALTY=0, D_HIDDEN=4)
    model = gan.GAN(images)
    model.train(batches(images, 5), 0, 0)
    iterations, d_loss, g_loss, d_real, d_fake, accuracy = model.sums.numpy()
    assert iterations == 5
    logits = model.discriminator(gan.to_floats(images)).numpy()
    assert d_real / 5 == pytest.approx(np.mean(1 / (1 + np.exp(-logits))), rel=1e-4)
    assert 0 < d_fake / 5 < 1 and 0 <= accuracy / 5 <= 1
    assert d_loss > 0 and g_loss > 0


def test_a_short_training_on_drawn_digits_shows_varied_digits(small):
    small(Z_SIZE=32, G_HIDDEN=256, D_HIDDEN=128, BATCH_SIZE=100, EPOCHS=1, LR_DECAY=False)
    digits = gan.draw_digits(6000)
    model = gan.GAN(digits)
    for epoch in range(5):
        model.train(batches(digits, 60), 60 * epoch, 0)
    fakes = gan.generate(model.average, gan.draw_noise(200, -1)).astype(float)
    assert np.std(fakes, axis=0).mean() > 0.5 * np.std(digits, axis=0).mean()
    # Bright in the middle and black at the rim, as the digits are.
    assert fakes[:, 8:20, 8:20].mean() > 5 * fakes[:, :3].mean()
