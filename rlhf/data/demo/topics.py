"""What the synthetic data talks about: everyday topics, words that belong to them, and a few short facts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic: its `name` as in "tell me about ...", its `key` word, related words, and true short facts."""

    name: str
    key: str
    related: tuple[str, ...]
    facts: tuple[str, ...]


# One topic in three lines: name | key word | related words, then facts, parted by slashes.
_TEXT = """
tea | tea | drink leaf leaves hot cup water plant
Tea is a hot drink. / Tea is made from the leaves of a plant.
People drink tea from a cup. / Tea leaves soak in hot water.
coffee | coffee | drink bean cup hot morning roast dark
Coffee is a dark, hot drink. / Coffee is made from roasted beans.
Many people drink coffee in the morning. / Roasted coffee beans smell good in a cup.
bread | bread | flour bake oven dough slice butter loaf
Bread is baked in an oven. / Bread dough is made from flour.
People cut a loaf of bread into slices. / Warm bread tastes good with butter on each slice.
rice | rice | grain grow field water cook eat food
Rice is a grain people eat. / Rice grows in wet fields.
Many people eat rice every day as food. / Cook rice in water until the grains are soft.
cheese | cheese | milk cow eat food taste hard soft
Cheese is food made from milk. / Some cheese is soft, and some is hard.
Much cheese is made from the milk of cows. / Cheese is a salty food that people eat.
honey | honey | bee sweet hive flower food sugar golden
Bees make honey in a hive. / Honey is a sweet, golden food.
Bees turn the juice of flowers into honey. / Honey is sweet because it is full of sugar.
apples | apple | fruit tree red green sweet eat pie
Apples are sweet fruit. / Apples grow on trees and turn red.
People bake apples in a sweet pie. / Some apples are red, and some are green.
oranges | orange | fruit juice sweet tree peel vitamin round
Oranges are round, sweet fruit. / People drink the juice of sweet oranges.
Oranges are a fruit with a thick peel. / Oranges grow on a tree and hold vitamin C.
bananas | banana | fruit yellow peel sweet grow eat soft
Bananas are long, yellow fruit. / Ripe bananas are soft and sweet.
Peel bananas before you eat them. / Bananas grow in bunches and turn yellow.
potatoes | potato | grow ground vegetable fry boil eat cook
Potatoes grow under the ground. / Potatoes are a vegetable people eat.
You can boil or fry potatoes. / Potatoes are easy to grow and to cook.
tomatoes | tomato | red fruit sauce salad plant ripe juicy
Ripe tomatoes are red and juicy. / Tomatoes go well in a salad or a sauce.
Tomatoes are the red fruit of a plant. / Slice ripe tomatoes for a fresh salad.
chocolate | chocolate | sweet cocoa bean sugar milk dark eat
Chocolate is sweet and dark. / Chocolate is made from cocoa beans.
Dark chocolate holds more cocoa and less sugar. / Children love to eat sweet milk chocolate.
salt | salt | sea food taste white water cook mineral
Salt is a white mineral. / Salt gives food more taste.
The water of the sea is full of salt. / Cooks add a little salt to food.
sugar | sugar | sweet white cane taste food tea plant
Sugar is white and sweet. / Sugar is made from a plant called cane.
People stir sugar into tea to make it sweet. / Too much sugar in food hurts the teeth and the taste.
eggs | egg | hen chicken shell bird lay boil breakfast
Hens lay eggs every day. / Eggs of a bird have a hard shell.
Many people boil eggs for breakfast. / A chicken grows in eggs until the shell cracks.
milk | milk | cow drink white cheese calf baby butter
Milk is a white drink. / Milk from a cow becomes butter or cheese.
Cows make milk to feed the calf. / A baby drinks milk to grow.
soup | soup | hot bowl vegetable eat water spoon cook
Soup is hot food in a bowl. / People eat soup with a spoon.
Soup is made by cooking vegetables in water. / A hot bowl of soup is good in winter.
pizza | pizza | cheese tomato dough oven bake slice hot
Pizza is baked in a hot oven. / Pizza is flat dough with tomato and cheese.
Friends share slices of hot pizza. / The cheese on pizza melts in the oven.
bees | bee | honey flower hive insect pollen sting fly
Bees are insects that make honey. / Bees live in a hive and make honey.
Bees carry pollen from flower to flower. / Bees fly out of the hive and may sting.
dogs | dog | pet bark friend tail walk animal loyal
Dogs are loyal pets. / Dogs bark and wag the tail.
Dogs are friendly animals that need a daily walk. / A dog is a loyal friend to people.
cats | cat | pet purr mouse mice sleep animal fur
Cats are pets with soft fur. / Cats purr when they are happy to sleep.
Cats hunt mice at night and sleep by day. / A cat is a small animal with fur.
horses | horse | ride run fast animal grass leg farm
Horses are fast animals. / People ride horses on the farm.
Horses eat grass and run on strong legs. / A horse can run fast over grass.
cows | cow | milk grass farm animal calf horn field
Cows are farm animals. / Cows give milk on a farm.
Cows eat grass in a green field. / A cow feeds milk to her calf.
birds | bird | fly wing feather nest egg sing tree
Birds fly with two wings. / Birds sing in the tree.
Birds have feathers and lay eggs. / Birds build a nest in a tree.
owls | owl | night bird eye hunt fly mice dark
Owls are birds of the night. / Owls hunt mice in the dark.
Owls have big eyes and fly in silence. / An owl can hunt in the dark of night.
fish | fish | water swim sea river fin gill scale
Fish swim in the sea. / Fish live in water and breathe with gills.
Fish swim with fins and a strong tail. / Some fish live in a river, some in the sea.
whales | whale | sea ocean big large largest mammal swim water
Whales are large mammals of the sea. / Whales swim across the ocean.
The blue whale is the largest mammal in the sea. / Whales come up from the water as mammals need air.
frogs | frog | jump pond water green leg egg tadpole
Green frogs jump into the pond. / Frogs jump with long legs.
Frogs lay eggs in a pond. / A tadpole in the water becomes a frog.
ants | ant | insect small nest queen work colony carry
Ants are small insects. / Ants live in a nest with a queen.
Ants work together in a large colony. / Small ants can carry heavy loads to the nest.
spiders | spider | web leg eight insect silk catch fly
Spiders have eight legs. / Spiders catch insects in a web.
Spiders spin a web out of silk. / A fly in the web is food for a spider.
butterflies | butterfly | wing insect flower caterpillar fly colorful color
Butterflies are insects with large wings. / Butterflies fly from flower to flower.
A caterpillar becomes a butterfly with wings. / Butterflies show bright color on each wing.
elephants | elephant | trunk large big animal tusk ear land
Elephants are big land animals. / Elephants have a trunk and large ears.
Elephants drink with a long trunk and dig with a tusk. / An elephant is the largest animal on land.
penguins | penguin | bird swim cold ice sea fly fish
Penguins are birds that swim. / Penguins live on cold ice.
Penguins cannot fly, but they swim well. / Penguins catch fish in the cold sea.
rabbits | rabbit | ear grass jump fur pet animal hop
Rabbits have long ears and soft fur. / Rabbits hop through the grass.
Rabbits are small animals that eat grass. / A rabbit with soft fur is a quiet pet.
the moon | moon | night earth sky light orbit sun tide
The moon shines in the night sky. / The moon orbits the earth.
The light of the moon comes from the sun. / The moon pulls the tide on the earth.
the sun | sun | star light heat earth day sky warm
The sun is a warm star. / The sun gives light and heat.
The earth goes around the warm sun. / The sun lights up the sky by day.
rain | rain | water cloud fall sky wet drop plant
Rain falls from clouds. / Rain is water from the sky.
Plants need the water of the rain. / Drops of rain make the streets wet.
snow | snow | cold white winter ice fall flake cloud
Snow is cold and white. / Snow falls in winter.
Each flake of snow is made of ice. / Children play in the white snow of winter.
wind | wind | air blow move strong sail cloud weather
Wind is air that moves. / Wind blows clouds across the sky.
A strong wind can blow a boat by its sail. / The wind changes with the weather and the air.
clouds | cloud | sky rain water white air drop gray
Clouds are white or gray in the sky. / Clouds bring water as rain.
Clouds are made of tiny drops of water. / Clouds float in the air and carry rain.
rivers | river | water flow sea fish boat mountain valley
Rivers flow to the sea. / Rivers carry fresh water for fish.
Rivers begin as small streams on a mountain and flow down. / A river cuts a valley with its water.
the sea | sea | water salt wave fish ship blue deep
The sea is salt water. / The sea is deep and blue.
Fish and ships cross the waves of the sea. / The deep sea is full of fish.
mountains | mountain | high climb snow rock peak tall hill
Mountains are high and made of rock. / People climb tall mountains.
Snow lies on the peak of high mountains. / A mountain is a very tall hill of rock.
deserts | desert | dry sand hot rain cactus camel plant
Deserts are dry and hot. / Deserts get very little rain on the sand.
A camel can live in the dry desert. / A cactus is a plant that grows in hot deserts.
forests | forest | tree animal green wood plant bird leaf
Forests are full of green trees. / Forests are home to animals and birds.
Tall trees give the forest its green color. / Wood comes from the trees of the forest.
trees | tree | leaf leaves wood root branch grow air
Trees have roots and leaves. / Trees give wood and clean air.
Birds sit on the branch of a tree among the leaves. / A tree can grow for hundreds of years from one root.
roses | rose | flower red thorn garden smell petal sweet
Roses are red flowers. / Roses have sharp thorns and soft petals.
Roses smell sweet in the garden. / A red rose is a flower of love.
grass | grass | green grow cow field lawn plant eat
Grass is a green plant. / Cows eat grass in the field.
Grass grows on the lawn. / Green grass covers a field after rain.
volcanoes | volcano | lava mountain hot rock ash erupt fire
Volcanoes erupt with hot lava. / Volcanoes throw out ash and rock.
A volcano is a mountain that can erupt. / Hot lava from a volcano turns into rock.
stars | star | night sky sun light bright hot gas
Stars shine in the night sky. / Stars are balls of hot gas.
The sun is the star that gives us light. / Bright stars fill the sky far from towns.
bicycles | bicycle | wheel ride pedal road bike two travel
Bicycles have two wheels. / People ride bicycles on the road.
You turn the pedals of bicycles to ride. / A bicycle is a cheap way to travel on two wheels.
trains | train | track rail station travel fast ride passenger
Trains run on a track of rails. / Trains carry passengers to a station.
Fast trains travel between large cities. / Passengers ride a train from the station.
cars | car | road drive wheel engine fast travel driver
Cars have four wheels and an engine. / People drive cars on the road.
A car is a fast way to travel by road. / The driver starts the engine of the car.
boats | boat | water river sea sail float row lake
Boats float on water. / Boats sail on the sea.
People row small boats on a lake. / Wind on the sail moves a boat over the water.
planes | plane | fly sky wing air travel fast pilot
Planes fly in the sky. / Planes have wings and a pilot.
Planes travel fast through the air. / A pilot can fly a plane over the sea.
buses | bus | ride city people stop passenger driver travel
Buses carry people through the city. / People ride buses to work.
The driver of the bus waits at each stop. / Passengers travel across the city by bus.
bridges | bridge | river cross road water car build steel
Bridges cross a river. / Cars cross the water on bridges.
People build bridges of steel or stone. / A bridge carries the road over a river.
books | book | read page story write library word paper
People read books in a library. / Books have pages of paper.
Books tell a story in words. / Writers write books for people to read.
pencils | pencil | write draw paper wood sharp eraser school
Pencils are sharp sticks of wood. / People write and draw with pencils.
A sharp pencil draws a thin line on paper. / Children use pencils to write at school.
paper | paper | tree wood write page book thin sheet
Paper comes from wood and trees. / Paper is a thin sheet for writing.
People write and draw on a sheet of paper. / The pages of a book are paper from trees.
clocks | clock | time hour hand minute tick tell wall
Clocks tell the time. / Clocks tick on the wall.
The hands of the clock show hour and minute. / A clock on the wall tells us the time.
mirrors | mirror | glass face light see reflect image wall
Mirrors are glass that reflects light. / Mirrors reflect light and faces.
People see the face in mirrors. / A mirror on the wall shows an image.
windows | window | glass light air open room house see
Windows are glass that lets light in. / Windows let light into the room.
Open windows bring fresh air into the house. / Through a window you see out of the room.
umbrellas | umbrella | rain dry wet sun open hand carry
Umbrellas keep people dry in the rain. / People open umbrellas in the rain.
Carry umbrellas on wet days. / A large umbrella gives shade from the sun and the rain.
shoes | shoe | foot feet walk wear leather pair sole
People wear shoes on the feet. / Shoes are a pair, made of leather.
Good shoes help you walk far on your feet. / A pair of shoes has a strong sole.
chairs | chair | sit leg seat wood table back furniture
Chairs have legs and a seat. / People sit on chairs at the table.
A chair has a seat and a back. / Many chairs are furniture made of wood.
lamps | lamp | light dark bulb room electric table read
Lamps give light to a room. / Lamps are lit when a room is dark.
Lamps use an electric bulb. / People read by the light of a lamp.
keys | key | door lock open metal house turn lose
Keys open a door. / Keys are made of metal and fit a lock.
Turn the keys in the lock to open the house. / People often lose the key of the door.
soap | soap | wash hand clean water skin bubble dirt
Soap washes the hands clean. / Soap makes bubbles in water.
People wash dirt off the skin with soap. / Soap and water keep your hands clean.
football | football | ball team goal play player game kick
Football is a game of two teams. / Football players kick a ball.
A football team tries to score a goal. / Children play football after school with a ball.
swimming | swimming | water pool swim sport arm body sea
Swimming is a water sport. / People go swimming in a pool of water.
Swimming makes the arms and the body strong. / Swimming in the sea is fun in warm water.
chess | chess | game board piece king player play move
Chess is a game on a board. / Two players move pieces in chess.
A chess player tries to trap the other king. / Each piece moves in its own way on the chess board.
music | music | song sound sing play listen instrument dance
Music is sound that people play. / People listen to music and dance.
Music is the sound of a voice or an instrument. / Friends sing a song when they play music.
guitars | guitar | string play music wood instrument song sound
Guitars make a sound with six strings. / Guitars play music on strings.
People play a song on guitars. / A guitar is an instrument made of wood.
pianos | piano | key play music instrument sound white black
Pianos have black and white keys. / People play music on pianos.
Pianos make a sound when you press a key. / The piano is an instrument for music of all kinds.
painting | painting | color brush picture art paint canvas wall
Painting is an art of color. / Painting needs a brush and color.
People hang a painting on the wall as art. / A painting is a picture on canvas.
dancing | dancing | music move dance body step partner fun
Dancing is moving the body to music. / Dancing is fun with a partner.
Dancing needs a good step and good music. / Dancing keeps the body fit and is fun.
winter | winter | cold snow season ice day dark warm
Winter is a cold season. / Winter brings snow and ice.
In winter the days are short and dark. / People wear warm coats in the cold of winter.
summer | summer | hot sun season warm day beach long
Summer is a hot season. / Summer days are long and warm.
In summer people go to the beach in the sun. / The sun is hot in summer.
sleep | sleep | night rest bed body dream mind tired
Sleep gives the body rest. / People sleep in a bed at night.
Sleep helps the mind rest and dream. / A tired body needs sleep every night.
gardens | garden | flower plant grow vegetable tree green soil
Flowers grow in gardens. / Gardens need good soil for plants.
People grow vegetables in gardens. / A garden is green with trees and flowers.
schools | school | teacher learn child children student class read
Schools help children learn. / Teachers work with children in schools.
Students go to schools to learn to read. / A school has a teacher for each class.
libraries | library | book read borrow quiet people shelf free
Libraries are full of books to read. / People borrow books from libraries.
Libraries are quiet places to read. / A library lets people read books for free.
kitchens | kitchen | cook food stove table eat meal sink
People cook food in kitchens. / Kitchens have a stove and a sink.
A kitchen is the room where you cook a meal. / Families eat at the kitchen table.
candles | candle | light wax flame burn wick dark fire
Candles are wax that burns. / Candles burn with a small flame.
A candle gives light in the dark. / The wick of candles burns with a flame.
"""


def _parse(text: str) -> tuple[Topic, ...]:
    lines = [line.strip() for line in text.strip().splitlines()]
    topics = []
    for header, *fact_lines in zip(lines[0::3], lines[1::3], lines[2::3], strict=True):
        name, key, related = (part.strip() for part in header.split("|"))
        facts = tuple(fact.strip() for line in fact_lines for fact in line.split("/"))
        topics.append(Topic(name, key, tuple(related.split()), facts))
    return tuple(topics)


TOPICS = _parse(_TEXT)
